//! What can be seen of a running daemon: metrics of the estate, the page, and what scrapers can do
//! to it.

mod estate;
mod logs;
mod page;
mod scrapers;
