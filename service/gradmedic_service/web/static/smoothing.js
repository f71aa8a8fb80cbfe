// Smoothing of a line.

/** Largest weight of the past; with 1 a line would never move. */
export const MAX_SMOOTHING = 0.99;

/**
 * Return the exponential moving average of the points' numbers: `{x, y}`, one for each point with a number.
 *
 * `weight`, from 0 to below 1, is the weight of the past; the average of the first points is corrected for its short past
 * (Kingma and Ba 2015, section 3), so that it begins at the first number and not at 0. A point without a finite number
 * does not enter the average and has none: what is lost stays visible.
 */
export function smooth(points, weight) {
  let average = 0;
  let share = 0; // of the average that the numbers so far make up
  return points.flatMap((point) => {
    if (point.y === null) return [];
    average = weight * average + (1 - weight) * point.y;
    share = weight * share + (1 - weight);
    return [{ ...point, y: average / share }];
  });
}
