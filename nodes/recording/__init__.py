"""Looking inside: attention to words recorded in a sampling run or a training pass, kept, read and shown."""
