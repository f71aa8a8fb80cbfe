"""The parts for browsers: the pages, their files, and the event stream."""
