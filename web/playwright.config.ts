import { existsSync } from "node:fs";
import { defineConfig } from "@playwright/test";

// A browser of the system: nothing is downloaded.
const executablePath = [
  process.env.CHROMIUM,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
].find((path) => path && existsSync(path));
if (!executablePath) throw new Error("the tests need Chromium: apt install chromium, or CHROMIUM=its path");

const args = process.getuid?.() === 0 ? ["--no-sandbox"] : []; // Chromium's sandbox refuses root
const [host, port] = ["127.0.0.1", Number(process.env.PORT ?? 4173)];

export default defineConfig({
  testDir: "tests",
  workers: 1,
  timeout: 120_000, // two models are opened, on a machine that may be busy
  expect: { timeout: 60_000 },
  reporter: "list",
  use: { baseURL: `http://${host}:${port}`, launchOptions: { executablePath, args } },
  webServer: { command: `npx vite preview --host ${host} --port ${port} --strictPort`, url: `http://${host}:${port}` },
});
