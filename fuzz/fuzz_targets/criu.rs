#![no_main]
drover_fuzz::target!(criu);
