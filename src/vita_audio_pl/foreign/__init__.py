"""Files made by other projects, read as data: nothing in them is executed, unless a person says that a file is trusted."""
