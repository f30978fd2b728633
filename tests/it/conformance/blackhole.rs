//! The sink `blackhole`, which keeps nothing that could be looked at.

kind! { "blackhole" keeps nothing: "it has no store" }
