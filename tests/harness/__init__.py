"""The real parts that tests run against: processes, certificates, ECH keys, a resolver, target servers, taps."""
