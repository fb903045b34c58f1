import { explorer } from "./explorer";
import { recognizer } from "./recognize";
import { trained } from "./trained";

const { show } = explorer();
recognizer();
trained(show);
