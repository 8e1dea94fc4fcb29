#![no_main]
drover_fuzz::target!(metrics_request);
