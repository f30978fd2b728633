//! Lists of jobs.
