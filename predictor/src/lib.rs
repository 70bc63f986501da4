//! Forecasts one step-sized latency series; no clock, no network.
