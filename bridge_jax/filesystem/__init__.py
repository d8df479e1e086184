"""Files and streams: UTF-8 text, atomic writes, output that may fail."""
