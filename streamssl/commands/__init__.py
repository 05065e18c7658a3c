"""Commands of the one command line, a file for each: options, what they call, what is shown."""
