"""What other libraries need to work with a patched model. Each file imports its library only when it is used."""
