"""Who is changed: the instances of a stock model that get a connection, and back again."""
