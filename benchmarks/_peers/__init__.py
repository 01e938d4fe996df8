"""One program for each peer: what a bot author would write with it, driven by `_drive.py` or `_drive.js`."""
