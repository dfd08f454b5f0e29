"""The upcall protocol, decoded and encoded without IO: no socket, file, clock or thread."""
