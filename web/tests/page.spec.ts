// The page as people use it: with a mouse, with the keyboard, on a phone and on a desktop, in light and in dark.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import AxeBuilder from "@axe-core/playwright";
import { expect, test as base, type Page } from "@playwright/test";
import * as ort from "onnxruntime-web/wasm";
import { about, softmax } from "../src/model";
import { centerOfMass } from "../src/pixels";
import { EXAMPLES } from "../src/strokes";

ort.env.wasm.numThreads = 1;

/** The page, opened; the test fails on any message of an error and on any request to another host. */
const test = base.extend<{ opened: Page }>({
  opened: async ({ page, baseURL }, use) => {
    const faults: string[] = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && faults.push(message.text()));
    page.on("pageerror", (error) => faults.push(error.message));
    page.on("request", (request) => {
      if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(baseURL!)) faults.push(request.url());
    });
    await page.goto("/");
    await use(page);
    expect(faults).toEqual([]);
  },
});

const numbers = (page: Page) => page.locator("#stage text").allTextContents();
const answer = (page: Page) => page.locator("#answer b");

/** The picture that the model gets, one number a pixel and channel, channels first. */
function looks(page: Page, channels = 1): Promise<number[]> {
  return page.locator("#looks").evaluate((canvas: HTMLCanvasElement, channels) => {
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    const context = copy.getContext("2d", { willReadFrequently: true })!;
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const area = data.length / 4;
    return Array.from({ length: channels * area }, (_, at) => data[(at % area) * 4 + Math.floor(at / area)] / 255);
  }, channels);
}

async function bothSay(page: Page, name: string): Promise<void> {
  await expect(answer(page)).toHaveText(name);
  await expect(page.locator("#compact-class")).toHaveText(name);
  await expect(page.locator("#dense-class")).toHaveText(name);
}

/** Draw with the mouse, leaning, at a size and a place of the drawing area in hundredths of its side. */
async function draw(page: Page, digit: number, size: number, left: number, top: number, lean: number): Promise<void> {
  await page.getByRole("button", { name: "Clear" }).click();
  const box = (await page.locator("#pad").boundingBox())!;
  const place = (x: number, y: number): [number, number] => [
    box.x + (box.width * (left + (size * (x - lean * (y - 50))) / 100)) / 100,
    box.y + (box.height * (top + (size * y) / 100)) / 100,
  ];
  for (const stroke of EXAMPLES[digit]) {
    await page.mouse.move(...place(stroke[0].x, stroke[0].y));
    await page.mouse.down();
    const some = stroke.filter((_, at) => at % 3 === 0 || at === stroke.length - 1 || stroke.length < 6);
    for (const { x, y } of some) await page.mouse.move(...place(x, y));
    await page.mouse.up();
  }
}

test("what is drawn is classified, wherever and however it is drawn", async ({ opened }) => {
  test.slow(); // twenty drawings
  for (let digit = 0; digit < 10; digit++) {
    await draw(opened, digit, 88, 6, 5, 0);
    await bothSay(opened, String(digit));
    const center = centerOfMass(Float32Array.from(await looks(opened)), 28);
    expect(Math.hypot(center.x - 13.5, center.y - 13.5)).toBeLessThan(0.1); // as MNIST's digits lie
    await draw(opened, digit, 48, 44, 8, 0.15);
    await bothSay(opened, String(digit));
  }
});

test("an example is chosen by keyboard, and the figures of both files are there", async ({ opened }) => {
  await opened.getByRole("button", { name: "Example 3" }).focus();
  await opened.keyboard.press("Enter");
  await bothSay(opened, "3");
  const [small, large] = await Promise.all(
    ["compact", "dense"].map((name) => opened.locator(`#${name}-bytes`).textContent()),
  );
  expect(parseFloat(small!)).toBeLessThan(30);
  expect(parseFloat(large!)).toBeGreaterThan(10 * parseFloat(small!));
  for (const name of ["compact", "dense"])
    for (const what of ["opening", "run"]) await expect(opened.locator(`#${name}-${what}`)).toHaveText(/^[\d.]+ ms$/);
});

test("the line is turned by keyboard and by mouse, and the numbers follow", async ({ opened }) => {
  const stage = opened.locator("#stage");
  await stage.press("Home");
  await expect(stage).toHaveAttribute("aria-valuenow", "0");
  expect(await numbers(opened)).toEqual("0.00 0.00 0.00 −0.90 0.55 1.00 0.00 0.00 0.00".split(" "));
  for (let press = 0; press < 6; press++) await stage.press("Shift+ArrowUp");
  await expect(stage).toHaveAttribute("aria-valuenow", "90");
  expect(await numbers(opened)).toEqual("0.00 1.00 0.00 0.00 0.55 0.00 0.00 −0.90 0.00".split(" "));
  await stage.press("ArrowLeft");
  await expect(stage).toHaveAttribute("aria-valuenow", "87");
  const box = (await stage.boundingBox())!;
  await opened.mouse.move(box.x + box.width / 2, box.y + box.height * 0.3);
  await opened.mouse.down();
  await opened.mouse.move(box.x + box.width * 0.2, box.y + box.height / 2);
  await opened.mouse.up();
  await expect(stage).toHaveAttribute("aria-valuenow", "180");
  await opened.getByLabel("tap 1", { exact: false }).last().press("End");
  await opened.getByLabel("tap −1").press("Home");
  await expect(opened.locator("#stage text").nth(5)).toHaveText("−1.00");
});

test("five taps, and the square path on which a diagonal is exact", async ({ opened }) => {
  await opened.getByLabel("5", { exact: true }).check();
  await opened.getByLabel("square").check();
  const stage = opened.locator("#stage");
  await stage.press("Home");
  for (let press = 0; press < 3; press++) await stage.press("PageUp");
  await expect(stage).toHaveAttribute("aria-valuenow", "45");
  const found = await numbers(opened);
  expect(found).toHaveLength(25);
  expect(found.filter((_, place) => place % 4 === 0 && place && place < 24)).toEqual(
    "0.80 −0.30 1.00 0.40 −0.90".split(" "),
  );
  expect(found.filter((text) => text !== "0.00")).toHaveLength(5);
  await expect(opened.locator("#few")).toHaveText("6");
});

test("the angle learns: it goes to the green line and stays there", async ({ opened }) => {
  const learn = opened.getByRole("button", { name: "Learn" });
  await opened.locator("#stage").press("Home");
  await learn.click();
  await expect(learn).toHaveAttribute("aria-pressed", "false");
  const [x, y] = await Promise.all(
    ["x2", "y2"].map((name) => opened.locator("#stage line").first().getAttribute(name)),
  );
  const goal = (Math.atan2(-Number(y), Number(x)) * 180) / Math.PI;
  const found = Number(await opened.locator("#stage").getAttribute("aria-valuenow"));
  expect(Math.abs(((found - goal + 540) % 360) - 180)).toBeLessThan(2);
  expect(Math.abs(((found + 180) % 360) - 180)).toBeGreaterThan(25); // from 0 degrees
});

test("it turns by itself until it is touched, and not for those who ask for calm", async ({
  opened,
  browser,
  baseURL,
}) => {
  const before = await opened.locator("#angle-text").textContent();
  await expect(opened.locator("#angle-text")).not.toHaveText(before!);
  await opened.locator("#stage").press("Home");
  await opened.waitForTimeout(300);
  await expect(opened.locator("#angle-text")).toHaveText("0°");
  const calm = await browser.newPage({ reducedMotion: "reduce", baseURL });
  await calm.goto("/");
  await calm.waitForTimeout(600);
  await expect(calm.locator("#angle-text")).toHaveText("40°");
  await calm.close();
});

test("the trained kernels turn from before to after, and one is opened in the explorer", async ({ opened }) => {
  await expect(opened.locator("#layer-text")).toHaveText("1 of 18: 8 → 8");
  await opened.locator("#layer").press("ArrowRight");
  await expect(opened.locator("#layer-text")).toHaveText(/^2 of 18/);
  await opened.locator("#mosaic").press("ArrowDown");
  await expect(opened.locator("#chosen")).toContainText("Output 2, input 1");
  const [, first, last] = (await opened.locator("#chosen").textContent())!.match(/from (\d+)° to (\d+)°/)!;
  for (const [key, angle] of [
    ["End", last],
    ["Home", first],
  ]) {
    await opened.locator("#time").press(key);
    await opened.locator("#mosaic").press("Enter");
    await expect(opened.locator("#angle-text")).toHaveText(`${angle}°`);
  }
});

test("a photo is classified alike by both files, and what is no picture is refused", async ({ opened }) => {
  await opened.getByLabel("Drop a photo", { exact: true }).check();
  await expect(opened.locator("#answer")).toHaveText("Give it a photo.");
  const png = await opened.evaluate(() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 300, height: 200 });
    const context = canvas.getContext("2d")!;
    context.fillStyle = "skyblue";
    context.fillRect(0, 0, 300, 200);
    context.fillStyle = "gray";
    context.fillRect(60, 90, 180, 20);
    return canvas.toDataURL().split(",")[1];
  });
  await opened
    .locator("#photo")
    .setInputFiles({ name: "sky.png", mimeType: "image/png", buffer: Buffer.from(png, "base64") });
  await expect(answer(opened)).toHaveText(/^[a-z]+$/);
  await bothSay(opened, (await answer(opened).textContent())!);
  // The same picture, prepared by hand: what the page shows are the file's probabilities.
  const file = new Uint8Array(readFileSync(new URL("../public/models/cifar10-jpeg.onnx", import.meta.url)));
  const { mean, std } = about(file);
  const pixels = (await looks(opened, 3)).map((value, at) => (value - mean[at >> 10]) / std[at >> 10]);
  const images = new ort.Tensor("float32", Float32Array.from(pixels), [1, 3, 32, 32]);
  const { logits } = await (await ort.InferenceSession.create(file)).run({ images });
  const shares = softmax(logits.data as Float32Array);
  const shown = await opened.locator("#bars li").allTextContents();
  shares.forEach((share, at) =>
    expect(Math.abs(parseFloat(shown[at].match(/[\d.]+/)![0]) - 100 * share)).toBeLessThan(0.2),
  );
  await opened
    .locator("#photo")
    .setInputFiles({ name: "no.png", mimeType: "image/png", buffer: Buffer.from("no picture") });
  await expect(opened.locator("#answer")).toHaveText("This file does not decode as an image.");
});

const photos = join(process.env.ROTATECONV_DATA ?? "../data", "cifar10-jpeg", "test");

test("most photos of the test set are classified right", async ({ opened }) => {
  test.skip(!existsSync(photos), `there is no ${photos}: set ROTATECONV_DATA`);
  await opened.getByLabel("Drop a photo", { exact: true }).check();
  await expect(opened.locator("#answer")).toHaveText("Give it a photo.");
  let right = 0;
  for (const name of readdirSync(photos)) {
    for (const file of readdirSync(join(photos, name)).sort().slice(0, 4)) {
      const before = await opened.locator("#bars").getAttribute("data-shown");
      await opened.locator("#photo").setInputFiles(join(photos, name, file));
      await expect(opened.locator("#bars")).not.toHaveAttribute("data-shown", before ?? "");
      right += Number((await answer(opened).textContent()) === name);
    }
  }
  expect(right).toBeGreaterThan(24); // of 40
});

for (const width of [360, 1440]) {
  for (const colorScheme of ["light", "dark"] as const) {
    test.describe(`at ${width} pixels, ${colorScheme}`, () => {
      test.use({
        viewport: { width, height: 800 },
        colorScheme,
        hasTouch: width < 500,
        contextOptions: { reducedMotion: "reduce" },
      });

      test("nothing is wider than the window, and every part works", async ({ opened }) => {
        await opened.getByRole("button", { name: "Example 7" }).click();
        await bothSay(opened, "7");
        expect(await opened.evaluate(() => document.documentElement.scrollWidth)).toBe(width);
        const paper = await opened.evaluate(() => getComputedStyle(document.body).backgroundColor);
        expect(paper).toBe(colorScheme === "light" ? "rgb(255, 255, 255)" : "rgb(13, 17, 23)");
        const { violations } = await new AxeBuilder({ page: opened }).analyze(); // names, roles, contrasts
        expect(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)])).toEqual([]);
        const corner = await opened
          .locator("#mosaic")
          .evaluate((canvas: HTMLCanvasElement) => canvas.width * canvas.height);
        expect(corner).toBeGreaterThan(100_000);
        if (process.env.SCREENSHOTS)
          await opened.screenshot({
            path: join(process.env.SCREENSHOTS, `page-${width}-${colorScheme}.png`),
            fullPage: true,
          });
      });
    });
  }
}
