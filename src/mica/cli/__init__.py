"""Commands: collect values, call one service, print. The only place that reads environment and configuration."""
