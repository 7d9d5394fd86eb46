"""What the tunnel costs: MB/s and CPU seconds per GiB, against a bare TLS pipe, interleaved in one run."""
