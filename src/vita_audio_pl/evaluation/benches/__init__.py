"""What is asked: bench files, their readers, their items."""
