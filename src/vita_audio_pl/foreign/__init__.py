"""Files of other projects, read as data: nothing in them is executed unless the user marks a file as trusted."""
