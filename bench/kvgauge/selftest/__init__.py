"""One command for a machine: is every kernel right, how fast is it, and a file to send back."""
