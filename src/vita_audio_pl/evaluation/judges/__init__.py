"""Judges that transcribe spoken answers."""
