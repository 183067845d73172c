// A picture with edges, curves, gradients, texture and text, drawn by code.

export function drawExample(width, height) {
  const factor = 4; // drawn larger, so that its edges are those of a photograph
  const large = Object.assign(document.createElement("canvas"), { width: width * factor, height: height * factor });
  const context = large.getContext("2d");
  context.scale(large.width / 150, large.height / 100);
  const fill = (style, path) => {
    context.fillStyle = style;
    context.beginPath();
    path(context);
    context.fill();
  };
  const gradient = (top, bottom, from, to) => {
    const result = context.createLinearGradient(0, from, 0, to);
    result.addColorStop(0, top);
    result.addColorStop(1, bottom);
    return result;
  };
  fill(gradient("#27346e", "#f6a96c", 0, 66), (c) => c.rect(0, 0, 150, 100));
  fill("#fff1cf", (c) => c.arc(108, 40, 11, 0, 7));
  for (const [x, y] of [[14, 12], [31, 20], [46, 8], [70, 16], [128, 10], [90, 7], [140, 24]]) fill("#fff", (c) => c.arc(x, y, 0.6, 0, 7));
  const ridge = (style, base, heights) => fill(style, (c) => {
    c.moveTo(0, 100);
    heights.forEach((value, index) => c.lineTo((index * 150) / (heights.length - 1), base - value));
    c.lineTo(150, 100);
  });
  ridge("#5a4a7d", 62, [4, 16, 7, 22, 12, 27, 9, 18, 6, 14, 3]);
  ridge("#3b3765", 70, [8, 3, 14, 6, 10, 2, 12, 5, 9]);
  fill(gradient("#3c6b72", "#173a4a", 70, 100), (c) => c.rect(0, 70, 150, 30));
  context.strokeStyle = "#f9d9a6aa";
  context.lineWidth = 0.7;
  for (let line = 0; line < 9; line++) {
    context.beginPath();
    context.moveTo(108 - 12 + line * 0.7, 72.5 + line * 2.8);
    context.lineTo(108 + 12 - line * 0.7, 72.5 + line * 2.8);
    context.stroke();
  }
  fill("#f3e6d3", (c) => c.rect(20, 52, 30, 24));
  fill("#a8433a", (c) => { c.moveTo(16, 53); c.lineTo(35, 38); c.lineTo(54, 53); });
  fill("#6b3a2e", (c) => c.rect(31, 62, 8, 14));
  for (const x of [23, 42]) {
    fill("#ffd36b", (c) => c.rect(x, 57, 6, 6));
    fill("#6b3a2e", (c) => { c.rect(x + 2.700, 57, 0.600, 6); c.rect(x, 59.700, 6, 0.600); });
  }
  for (const [x, size] of [[62, 9], [70, 13], [8, 12]]) {
    fill("#4a2f27", (c) => c.rect(x - 0.800, 70, 1.600, 7));
    for (let layer = 0; layer < 3; layer++) {
      fill(["#1f5a4a", "#246a55", "#2b7a60"][layer], (c) => {
        const y = 72 - layer * size * 0.45;
        c.moveTo(x - size * (0.5 - layer * 0.1), y);
        c.lineTo(x, y - size * 0.8);
        c.lineTo(x + size * (0.5 - layer * 0.1), y);
      });
    }
  }
  context.strokeStyle = "#1b1b2f";
  context.lineWidth = 0.6;
  for (let x = 0; x < 150; x += 5) context.strokeRect(x, 90, 5, 8);
  fill("#fffaf0", (c) => c.rect(82, 82, 44, 12));
  context.fillStyle = "#1b1b2f";
  context.font = "bold 9px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillText("AaBb 123", 104, 91.2, 40);
  const small = Object.assign(document.createElement("canvas"), { width, height });
  const target = small.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.drawImage(large, 0, 0, width, height);
  return small;
}
