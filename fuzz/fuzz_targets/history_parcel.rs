#![no_main]
drover_fuzz::target!(history_parcel);
