"""What sources share: tables, line-aligned files, published benchmarks."""
