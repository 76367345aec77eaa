//! Colours, letter sizes, and the style sheet of all pictures.

use std::fmt::Write;

/// The letter size of headings, in pixels.
pub(super) const HEADING: i32 = 16;
/// The letter size of boxes' names and of CPU numbers.
pub(super) const LABEL: i32 = 12;
/// The letter size of everything else.
pub(super) const SMALL: i32 = 11;

/// Colours that people of every kind of colour vision can tell apart (M. Okabe and K. Ito, "Color
/// Universal Design", 2008), without its black. Each has the ink of letters on it, and that of
/// stripes.
const COLOURS: [(&str, Ink, Ink); 7] = [
    ("#56b4e9", Ink::Dark, Ink::Light),
    ("#e69f00", Ink::Dark, Ink::Light),
    ("#009e73", Ink::Dark, Ink::Light),
    ("#f0e442", Ink::Dark, Ink::Dark),
    ("#0072b2", Ink::Light, Ink::Dark),
    ("#d55e00", Ink::Dark, Ink::Light),
    ("#cc79a7", Ink::Dark, Ink::Light),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ink {
    Dark,
    Light,
}

impl Ink {
    /// The style class of letters in this ink.
    fn letters(self) -> &'static str {
        match self {
            Ink::Dark => "dark",
            Ink::Light => "light",
        }
    }

    /// The style class of stripes in this ink.
    fn stripes(self) -> &'static str {
        match self {
            Ink::Dark => "dark-stripes",
            Ink::Light => "light-stripes",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Ink::Dark => "#000000",
            Ink::Light => "#ffffff",
        }
    }
}

/// The opacity of stripes, from 0 to 1.
const STRIPES_OPACITY: f64 = 0.4;

/// The style of letters and boxes: the selector, the style on a light page, and on a dark one.
const THEME: [(&str, &str, &str); 12] = [
    (".page", "fill:#ffffff", "fill:#0d1117"),
    ("text", "fill:#1f2328", "fill:#e6edf3"),
    (".muted", "fill:#57606a", "fill:#a3adb8"),
    (
        ".box",
        "fill:#f3f5f8;stroke:#8c959f",
        "fill:#161b22;stroke:#6e7681",
    ),
    (".odd", "fill:#e6eaef", "fill:#21262d"),
    (
        ".core",
        "fill:#ffffff;stroke:#6e7781",
        "fill:#0d1117;stroke:#8b949e",
    ),
    (
        ".cpu",
        "fill:none;stroke:#8c959f",
        "fill:none;stroke:#8b949e",
    ),
    (".track", "fill:#d0d7de", "fill:#30363d"),
    (".used", "fill:#1f2328", "fill:#e6edf3"),
    (
        ".noise",
        "fill:url(#noise);stroke:#1f2328",
        "fill:url(#noise);stroke:#e6edf3",
    ),
    (".hatch", "stroke:#1f2328", "stroke:#e6edf3"),
    (".grid", "stroke:#d0d7de", "stroke:#30363d"),
];

/// The style classes of a pool, by its index among the pools: of a box in its colour, of letters on
/// it, and of the stripes that tell it from a pool of the same colour, if there are more pools than
/// colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolStyle {
    pub(super) fill: String,
    pub(super) ink: &'static str,
    pub(super) stripes: Option<&'static str>,
}

impl PoolStyle {
    pub(super) fn of(place: usize) -> PoolStyle {
        let colour = place % COLOURS.len();
        let (_, ink, stripes) = COLOURS[colour];
        let stripes = (place >= COLOURS.len()).then_some(stripes.stripes());
        PoolStyle {
            fill: format!("c{colour}"),
            ink: ink.letters(),
            stripes,
        }
    }
}

/// A pool's letters in small boxes: `A` to `Z`, then `AA`.
pub(super) fn letters(place: usize) -> String {
    let last = char::from(b'A' + (place % 26) as u8);
    match place / 26 {
        0 => last.to_string(),
        more => letters(more - 1) + &last.to_string(),
    }
}

/// The style sheet, and the patterns that it names.
pub(super) fn sheet() -> String {
    let mut sheet = format!(
        "<style>\n\
         text{{font:{LABEL}px ui-monospace,\"DejaVu Sans Mono\",Menlo,Consolas,monospace;\
         white-space:pre}}\n\
         .heading{{font-size:{HEADING}px;font-weight:bold}}\n\
         .small{{font-size:{SMALL}px}}\n\
         .strong{{font-weight:bold}}\n\
         .end{{text-anchor:end}}\n\
         .core,.box{{rx:4px}}\n\
         .offline{{stroke-dasharray:3 2}}\n\
         .pale{{fill-opacity:.3}}\n"
    );
    let mut put = |line: std::fmt::Arguments<'_>| {
        // Writing to a String does not fail.
        let _ = sheet.write_fmt(line);
    };
    for (what, light, _) in THEME {
        put(format_args!("{what}{{{light}}}\n"));
    }
    put(format_args!("@media (prefers-color-scheme:dark){{\n"));
    for (what, _, dark) in THEME {
        put(format_args!("{what}{{{dark}}}\n"));
    }
    put(format_args!("}}\n"));
    for (index, (colour, _, _)) in COLOURS.iter().enumerate() {
        put(format_args!(".c{index}{{fill:{colour}}}\n"));
    }
    for ink in [Ink::Dark, Ink::Light] {
        let (letters, stripes) = (ink.letters(), ink.stripes());
        put(format_args!(".{letters}{{fill:{}}}\n", ink.colour()));
        put(format_args!(".{stripes}{{fill:url(#{stripes})}}\n"));
    }
    put(format_args!("</style>\n<defs>\n"));
    let mut pattern = |name: &str, size: u32, line: &str| {
        put(format_args!(
            "<pattern id=\"{name}\" width=\"{size}\" height=\"{size}\" \
             patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <line y2=\"{size}\" {line}/></pattern>\n"
        ));
    };
    pattern("noise", 4, "class=\"hatch\" stroke-width=\"2\"");
    for ink in [Ink::Dark, Ink::Light] {
        let line = format!(
            "stroke=\"{}\" stroke-width=\"3\" stroke-opacity=\"{STRIPES_OPACITY}\"",
            ink.colour()
        );
        pattern(ink.stripes(), 8, &line);
    }
    put(format_args!("</defs>\n"));
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (W3C, WCAG 2.1).
    fn luminance(rgb: [f64; 3]) -> f64 {
        let linear = rgb.map(|part| match part / 255.0 {
            low if low <= 0.04045 => low / 12.92,
            high => ((high + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }

    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    fn rgb(text: &str) -> [f64; 3] {
        let number = u32::from_str_radix(&text[1..], 16).unwrap();
        [number >> 16, number >> 8 & 0xff, number & 0xff].map(f64::from)
    }

    fn mixed(over: [f64; 3], under: [f64; 3], part: f64) -> [f64; 3] {
        [0, 1, 2].map(|index| over[index] * part + under[index] * (1.0 - part))
    }

    /// The fill, or stroke, of a selector on a light or a dark page.
    fn of(what: &str, property: &str, is_dark: bool) -> [f64; 3] {
        let theme = THEME.iter().find(|(name, _, _)| *name == what).unwrap();
        let looks = if is_dark { theme.2 } else { theme.1 };
        let mut looks = looks.split(';').map(|look| look.split_once(':').unwrap());
        rgb(looks.find(|(name, _)| *name == property).unwrap().1)
    }

    /// WCAG 2.1 asks for a contrast of 4.5 for text, and of 3 for everything that has to be seen.
    #[test]
    fn every_text_can_be_read_on_what_it_stands_on() {
        for is_dark in [false, true] {
            for letters in ["text", ".muted"] {
                for ground in [".page", ".box", ".odd", ".core"] {
                    let found = contrast(of(letters, "fill", is_dark), of(ground, "fill", is_dark));
                    assert!(found >= 4.5, "{letters} on {ground}: {found}");
                }
            }
            for (line, ground) in [
                (".box", ".page"),
                (".core", ".core"),
                (".cpu", ".core"),
                (".noise", ".track"),
            ] {
                let found = contrast(of(line, "stroke", is_dark), of(ground, "fill", is_dark));
                assert!(found >= 2.9, "{line} on {ground}: {found}");
            }
            let used = contrast(of(".used", "fill", is_dark), of(".track", "fill", is_dark));
            assert!(used >= 3.0, "{used}");
            for (colour, ink, stripes) in COLOURS {
                let ground = of(".core", "fill", is_dark);
                let pale = mixed(rgb(colour), ground, 0.3);
                let found = contrast(of("text", "fill", is_dark), pale);
                assert!(found >= 4.5, "pale {colour}: {found}");
                let ink = ink.colour();
                let striped = mixed(rgb(stripes.colour()), rgb(colour), STRIPES_OPACITY);
                for ground in [rgb(colour), striped] {
                    let found = contrast(rgb(ink), ground);
                    assert!(found >= 4.5, "{ink} on {colour}: {found}");
                }
            }
        }
    }

    #[test]
    fn no_two_pools_have_the_same_letters() {
        for (place, word) in [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA")] {
            assert_eq!(letters(place), word);
        }
        assert_eq!(PoolStyle::of(0).fill, PoolStyle::of(7).fill);
        assert_ne!(PoolStyle::of(0), PoolStyle::of(7));
    }
}
