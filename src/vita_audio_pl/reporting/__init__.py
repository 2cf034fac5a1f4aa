"""Tables, plots and pages, made from the files that runs leave behind."""
