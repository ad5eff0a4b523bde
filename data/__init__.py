"""Where batches come from: data sets written once to RecordIO, and the DALI loader that reads them."""
