"""The instruments: time, counts, FLOPs, records, models of measured shapes."""
