"""Files that are whole or not there, what they must look like, and text made safe to show."""
