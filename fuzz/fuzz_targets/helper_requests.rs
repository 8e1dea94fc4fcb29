#![no_main]
drover_fuzz::target!(helper_requests);
