export function plotAll(_results: unknown, _folder: string): string[] {
  return [];
}
