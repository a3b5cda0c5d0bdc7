// Where the world's objects are in the picture: the same formulas as nano/world.py. They move the
// grips at once; the hint itself always comes from the server.

const CUBE = [-1, 1].flatMap((x) => [-1, 1].flatMap((y) => [-1, 1].map((z) => [0.62 * x, 0.62 * y, 0.62 * z])));
const PYRAMID = [[0, -0.95, 0], ...[-1, 1].flatMap((x) => [-1, 1].map((z) => [0.75 * x, 0.6, 0.75 * z]))];
const CUBE_EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];
const PYRAMID_EDGES = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 4], [4, 3], [3, 1]];

/** A solid's edges as pairs of points, in fractions of the picture's side. */
export function edgesOf(thing) {
  const [own, edges] = thing.kind === 'cube' ? [CUBE, CUBE_EDGES] : [PYRAMID, PYRAMID_EDGES];
  const [c, s, d, e] = [Math.cos(thing.turn), Math.sin(thing.turn), Math.cos(thing.tilt), Math.sin(thing.tilt)];
  const corners = own.map(([x, y, z]) => {
    const [turned, deep] = [c * x + s * z, c * z - s * x];
    return [thing.x + thing.size * turned, thing.y + thing.size * (d * y - e * deep)];
  });
  return edges.map(([a, b]) => [corners[a], corners[b]]);
}

/** A figure's joints in OpenPose's order, in fractions of the picture's side. */
export function jointsOf(figure) {
  const unit = (figure.size * 2) / 7;
  const joints = [];
  [joints[0], joints[1]] = [[0, -2.8], [0, -1.75]];
  const { bends: b } = figure;
  for (const [side, shoulder, hip, bends] of [[-1, 2, 8, b.slice(0, 4)], [1, 5, 11, b.slice(4)]]) {
    const from = ([x, y], length, angle) => [x + length * side * Math.sin(angle), y + length * Math.cos(angle)];
    joints[shoulder] = [side * 0.95, -1.6];
    joints[shoulder + 1] = from(joints[shoulder], 1.25, bends[0]);
    joints[shoulder + 2] = from(joints[shoulder + 1], 1.15, bends[1]);
    joints[hip] = [side * 0.5, 0.55];
    joints[hip + 1] = from(joints[hip], 1.4, bends[2]);
    joints[hip + 2] = from(joints[hip + 1], 1.35, bends[3]);
  }
  return joints.map(([x, y]) => [figure.x + unit * x, figure.y + unit * y]);
}

// A figure's joints that can be dragged: the angle that each one sets, and the joint it hangs from.
export const MOVABLE = [
  [3, 2, 'right elbow'], [4, 3, 'right hand'], [9, 8, 'right knee'], [10, 9, 'right foot'],
  [6, 5, 'left elbow'], [7, 6, 'left hand'], [12, 11, 'left knee'], [13, 12, 'left foot'],
].map(([joint, from, name], bend) => ({ joint, from, name, bend, side: bend < 4 ? -1 : 1 }));

/** The angle of a limb that points from a joint to a place. */
export const bendTo = (side, [ax, ay], [x, y]) => Math.atan2(side * (x - ax), y - ay);
