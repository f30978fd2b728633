//! Plots as SVG: lines over a logarithmic or linear axis, made by hand, since a library of plots is
//! larger than everything else here.

use std::fmt::Write as _;
use std::path::Path;

use crate::Failure;

/// A line of a plot, in the order in which its points are joined.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot with its words.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) across: &'a str,
    pub(crate) up: &'a str,
    /// The axes are logarithmic; then nothing on them is zero or less.
    pub(crate) log: (bool, bool),
    pub(crate) series: &'a [Series],
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
/// The names of the lines stand there.
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

/// Colours that people who see no red or green can tell apart.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// Values from `low` to `high` on a line of pixels.
struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, is_log: bool, from: f64, to: f64) -> Self {
        let values = values.filter(|value| value.is_finite() && (!is_log || *value > 0.0));
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = match (low <= high, is_log) {
            (false, _) => (1.0, 10.0),
            (true, true) => (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil())),
            // A length without its beginning misleads.
            (true, false) => (low.min(0.0), high * 1.05),
        };
        // A single value has room on both sides.
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        Axis { low, high, is_log, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        // Zero, which is too little to be measured, lies on the axis.
        let scale = |value: f64| if self.is_log { value.max(self.low).log10() } else { value };
        let part = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.from + part * (self.to - self.from)
    }

    /// The places of lines and numbers: powers of ten, or about six round values.
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            #[allow(clippy::cast_possible_truncation)]
            let exponents = self.low.log10().round() as i32..=self.high.log10().round() as i32;
            return exponents.map(|exponent| 10_f64.powi(exponent)).collect();
        }
        let raw = (self.high - self.low) / 6.0;
        let power = 10_f64.powf(raw.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps.into_iter().find(|step| *step >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..12)
            .map(|n| (first + f64::from(n)) * step)
            .take_while(|tick| *tick <= self.high)
            .collect()
    }
}

/// `1 000 000`, `0.5`.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 10.0 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The plot as the text of an SVG file.
pub(crate) fn svg(plot: &Plot<'_>) -> Result<String, Failure> {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let across = Axis::over(points().map(|point| point.0), plot.log.0, LEFT, WIDTH - RIGHT);
    let up = Axis::over(points().map(|point| point.1), plot.log.1, HEIGHT - BOTTOM, TOP);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escaped(plot.title)
    );
    for tick in across.ticks() {
        let x = across.place(tick);
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            number(tick)
        )?;
    }
    for tick in up.ticks() {
        let y = up.place(tick);
        writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            number(tick)
        )?;
    }
    let middle = f64::midpoint(LEFT, right);
    writeln!(
        out,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n\
         <text x=\"{middle:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(16 {:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        HEIGHT - 12.0,
        escaped(plot.across),
        f64::midpoint(TOP, bottom),
        escaped(plot.up)
    )?;
    for (index, series) in plot.series.iter().enumerate() {
        let colour = COLOURS.get(index % COLOURS.len()).unwrap_or(&"black");
        let line: Vec<_> = series
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", across.place(*x), up.place(*y)))
            .collect();
        let line = line.join(" ");
        writeln!(
            out,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        )?;
        // A point for each measurement, unless there are so many that they are a line.
        for (x, y) in series.points.iter().filter(|_| series.points.len() < 100) {
            writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                across.place(*x),
                up.place(*y)
            )?;
        }
        #[allow(clippy::cast_precision_loss)]
        let y = TOP + 16.0 * (index as f64 + 0.8);
        writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{y:.1}\" fill=\"{colour}\">{}</text>",
            right + 12.0,
            escaped(&series.name)
        )?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}

/// Writes the plot into a file of the folder, and prints it as what a report beside it has.
pub(crate) fn save(folder: &Path, name: &str, plot: &Plot<'_>) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(name);
    std::fs::write(&path, svg(plot)?).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("\n![{}]({name})\n", plot.title);
    eprintln!("{} is written", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_their_values_are() {
        let series =
            [Series { name: "a < b".into(), points: vec![(100.0, 20.0), (1_000_000.0, 2.0)] }];
        let plot = Plot { title: "t", across: "x", up: "y", log: (true, true), series: &series };
        let text = svg(&plot).unwrap();
        // From side to side, and on an axis from one to a hundred.
        let (twenty, two) =
            (360.0 - 320.0 * 20_f64.log10() / 2.0, 360.0 - 320.0 * 2_f64.log10() / 2.0);
        let line = format!("points=\"70.0,{twenty:.1} 710.0,{two:.1}\"");
        assert!(text.contains(&line), "{line} in {text}");
        for label in [">100<", ">1 000 000<", ">a &lt; b<", ">10<"] {
            assert!(text.contains(label), "{label} in {text}");
        }
    }

    #[test]
    fn a_plot_without_points_and_one_of_a_single_point_are_plots() {
        for points in [vec![], vec![(1.0, 0.0)], vec![(0.0, 5.0)]] {
            let series = [Series { name: String::new(), points }];
            for log in [(false, false), (true, true)] {
                let plot = Plot { title: "", across: "", up: "", log, series: &series };
                let text = svg(&plot).unwrap();
                assert!(text.ends_with("</svg>\n") && !text.contains("NaN"), "{text}");
            }
        }
    }
}
