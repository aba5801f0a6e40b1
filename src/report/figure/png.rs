//! A figure as a picture of dots, two for each of its pixels in either direction.

use plotters::prelude::{BitMapBackend, IntoDrawingArea};

use super::paint::{paint, size};
use super::Figure;

/// Dots for each pixel.
const SCALE: i32 = 2;

/// The file's content.
///
/// # Panics
/// When the figure cannot be drawn, which is a bug: nothing in it comes from outside.
pub fn png(figure: &Figure) -> Vec<u8> {
    let (width, height) = size(figure, SCALE);
    let mut dots = vec![0; width as usize * height as usize * 3];
    {
        let backend = BitMapBackend::with_buffer(&mut dots, (width, height));
        let area = backend.into_drawing_area();
        paint(figure, &area, SCALE).expect("a picture in memory can be drawn");
        area.present().expect("a picture in memory can be drawn");
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().expect("memory");
    writer.write_image_data(&dots).expect("memory");
    writer.finish().expect("memory");
    file
}
