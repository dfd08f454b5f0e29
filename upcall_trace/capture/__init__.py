"""The `.upcap` file: records, writer, reader, index and recovery. docs/capture-format.md."""
