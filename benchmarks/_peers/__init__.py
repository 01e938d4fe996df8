"""One program for each peer: what a bot author would write with it.

`_drive.py` or `_drive.js` drives it.
"""
