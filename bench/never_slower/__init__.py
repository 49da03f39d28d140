"""Whether speculation ever costs: on over off through the real server, at every concurrency and kind of text."""
