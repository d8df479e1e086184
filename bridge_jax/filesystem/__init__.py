"""Files and streams: text in UTF-8 or refused, writes that survive a kill, output that may be lost."""
