"""What is installed here: methods and their options, and what this machine can do."""
