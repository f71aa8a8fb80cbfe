"""What a browser needs: the pages, their files, and the event stream."""
