"""The documentation followed to the letter in a real Debian. README.md beside this says how to run it."""
