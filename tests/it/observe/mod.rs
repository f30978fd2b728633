//! A running daemon as others see it: metrics of the estate, the page, and hostile scrapers.

mod estate;
mod logs;
mod page;
mod scrapers;
