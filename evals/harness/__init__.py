"""The machinery that runs benchmarks: settings, the evaluation loop, run folders, measurements. It names no method."""
