//! A running daemon as it can be seen: metrics of the estate, the page, and what scrapers can do to
//! it.

mod estate;
mod logs;
mod page;
mod scrapers;
