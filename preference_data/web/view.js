"use strict";
// Three pictures, one view: the zoom, and the point of the picture (in shares of its sides) that lies in the middle of every frame.
const View = (() => {
  const frames = [...document.querySelectorAll(".frame")];
  const view = { zoom: 1, x: .5, y: .5 };
  const fingers = new Map();
  let zoomed = false;
  const api = { zoomBy, moveBy, reset, draw, zoomed: () => zoomed, onzoom() {} };

  function fitted(frame) {  // size of the whole picture in the frame, at zoom 1
    const image = frame.firstElementChild, { clientWidth: width, clientHeight: height } = frame;
    const fit = Math.min(width / (image.naturalWidth || 1), height / (image.naturalHeight || 1));
    return { width, height, fit, across: (image.naturalWidth || 1) * fit, down: (image.naturalHeight || 1) * fit };
  }
  function draw() {
    view.zoom = Math.min(32, Math.max(1, view.zoom));
    const edge = .5 / view.zoom;
    view.x = Math.min(1 - edge, Math.max(edge, view.x));
    view.y = Math.min(1 - edge, Math.max(edge, view.y));
    for (const frame of frames) {
      const { width, height, fit, across, down } = fitted(frame);
      const left = width / 2 - ((width - across) / 2 + view.x * across) * view.zoom;
      const top = height / 2 - ((height - down) / 2 + view.y * down) * view.zoom;
      frame.firstElementChild.style.transform = `translate(${left}px, ${top}px) scale(${view.zoom})`;
      frame.firstElementChild.classList.toggle("crisp", fit * view.zoom > 6);
    }
    document.getElementById("zoom").textContent = view.zoom > 1 ? `${Math.round(view.zoom * 100)} %` : "";
    if (zoomed !== view.zoom > 1) { zoomed = view.zoom > 1; api.onzoom(); }
    document.body.dataset.view = [view.zoom, view.x, view.y].map(v => v.toFixed(4)).join(" ");
  }
  // The point (x, y), in shares of `frame` from its middle, stays where it is.
  function zoomBy(factor, x = 0, y = 0, frame = frames[1]) {
    const { width, height, across, down } = fitted(frame), before = view.zoom;
    view.zoom = Math.min(32, Math.max(1, before * factor));
    view.x += x * width / across * (1 / before - 1 / view.zoom);
    view.y += y * height / down * (1 / before - 1 / view.zoom);
    draw();
  }
  // Moves the picture by shares of `frame`.
  function moveBy(x, y, frame = frames[1]) {
    const { width, height, across, down } = fitted(frame);
    view.x -= x * width / across / view.zoom;
    view.y -= y * height / down / view.zoom;
    draw();
  }
  function reset() { view.zoom = 1; view.x = view.y = .5; draw(); }
  function place(frame, event) {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width - .5, (event.clientY - box.top) / box.height - .5];
  }

  for (const frame of frames) {
    frame.addEventListener("wheel", event => {
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY * .0015), ...place(frame, event), frame);
    }, { passive: false });
    frame.addEventListener("pointerdown", event => {
      frame.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(frame, event));
      frame.classList.add("held");
    });
    frame.addEventListener("pointermove", event => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = place(frame, event), other = [...fingers].find(([id]) => id !== event.pointerId);
      if (other) {
        const spread = at => Math.hypot(at[0] - other[1][0], at[1] - other[1][1]);
        zoomBy(spread(now) / Math.max(spread(before), .01), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2, frame);
      } else moveBy(now[0] - before[0], now[1] - before[1], frame);
      fingers.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"])
      frame.addEventListener(end, event => { fingers.delete(event.pointerId); frame.classList.remove("held"); });
    frame.addEventListener("dblclick", reset);
    frame.firstElementChild.addEventListener("load", draw);
  }
  addEventListener("resize", draw);
  return api;
})();
