#![no_main]
drover_fuzz::target!(hook);
