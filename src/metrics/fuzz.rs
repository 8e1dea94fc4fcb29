//! Fuzz target: heads of HTTP requests at the metrics endpoint.

use super::server;
use crate::fuzz::Target;

/// A request's head.
pub(crate) const REQUEST: Target = Target {
    name: "metrics_request",
    run: |input| {
        let _ = server::parse(input);
    },
    seeds: || {
        [
            "GET /metrics HTTP/1.1\r\nHost: h1\r\nAccept: */*\r\n\r\n",
            "HEAD /metrics?x=1 HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};
