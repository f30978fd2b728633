//! The sink `local`, which keeps nothing that could be looked at.

kind! { "local" keeps nothing: "it has no store" }
