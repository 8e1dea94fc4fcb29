#![no_main]
drover_fuzz::target!(guest_control);
