"""The guest without a VM: the kernel model on a socket, in process, or from a recording."""
